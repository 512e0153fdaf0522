"""The session: what one rank uses while it trains, with torch and without any training framework.

Options, state dictionaries and step boundaries come in from an adapter such as `lightning_plugin`;
saves, published checkpoints and the decision what to resume from go out. Nothing here may import a
framework, start a collective that the framework would not run, or let a rank wait for another one
without a deadline. Start reading at `rank_session` (what an adapter calls) and `writer_session`
(the rank that writes).
"""
