"""Output of the commands: tables, CSV, JSON, charts and pages.

In come plain objects of `bt_lightning.manage`; out goes text. No text that a file or a store
controls may act on the terminal. Start reading at `table_csv_json` and `text`.
"""
