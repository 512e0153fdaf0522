"""The report: one HTML page about jobs, without scripts, pictures or other files.

In come the facts of jobs that `bt_lightning.manage.job_facts` read; out goes text. All modules are
pure, and bound the size of the page, whatever the logs hold. No text that a file or a store
controls may become markup. Start reading at `html_report`.
"""
