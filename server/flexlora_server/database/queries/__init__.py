"""Queries of the database, one module per kind of row. Every function works in an open transaction and never opens one.

A transaction that changes a run or anything that belongs to it locks the run's row first (`runs.lock`): changes of one run queue.
"""
