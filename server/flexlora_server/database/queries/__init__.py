"""What the database holds, one file per thing: every function works inside an open transaction and never opens one.

A transaction that changes a run or anything of it locks the run's row first (`runs.lock`), so changes of one run queue up.
"""
