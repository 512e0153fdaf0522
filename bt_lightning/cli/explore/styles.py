"""The styles of the explorer: the terminal's own colours, and one pane where two do not fit."""

from __future__ import annotations

from typing import Final

STYLES: Final = """
* { scrollbar-color: ansi_bright_black; scrollbar-background: ansi_default;
    scrollbar-color-hover: ansi_bright_black; scrollbar-color-active: ansi_bright_black;
    scrollbar-background-hover: ansi_default; scrollbar-background-active: ansi_default;
    scrollbar-corner-color: ansi_default; }
Screen { background: ansi_default; color: ansi_default; layers: base; }
#title { height: 1; padding: 0 1; background: ansi_default; }
#panes { height: 1fr; }
#left { width: 46%; }
#status { height: auto; max-height: 4; padding: 0 1; }
#hints { height: 1; padding: 0 1; }
Pane {
    border: round ansi_bright_black;
    border-title-color: ansi_default;
    border-subtitle-color: ansi_default;
    background: ansi_default;
    height: 1fr;
    padding: 0 1;
}
Pane:focus-within { border: heavy ansi_green; border-title-style: bold; }
#checkpoints { height: 2fr; }
#files { height: 1fr; }
.head { height: 1; }
Lines { background: ansi_default; color: ansi_default; }
Input { background: ansi_default; color: ansi_default; border: none; height: 1; padding: 0; }
.filter { border: none; }

/* one pane at a time */
.narrow #left, .zoomed #left { width: 100%; }
.narrow Pane, .zoomed Pane { display: none; }
.narrow #content, .zoomed #content { display: none; width: 100%; }
.narrow.front-checkpoints #checkpoints, .zoomed.front-checkpoints #checkpoints { display: block; }
.narrow.front-files #files, .zoomed.front-files #files { display: block; }
.narrow.front-content #content, .zoomed.front-content #content { display: block; }
.narrow.front-content #left, .zoomed.front-content #left { display: none; }

ModalScreen { align: center middle; background: transparent; }
.dialog {
    width: 72;
    max-width: 96%;
    height: auto;
    max-height: 90%;
    padding: 0 1;
    border: heavy ansi_blue;
    background: ansi_default;
}
.dialog.error { border: heavy ansi_red; }
.dialog VerticalScroll { height: auto; max-height: 65vh; }
.dialog .said { height: auto; }
.dialog .keys { text-style: dim; margin-top: 1; }
.dialog .label { text-style: dim; margin-top: 1; }
.dialog Input { border-bottom: solid ansi_bright_black; height: 2; }
"""
