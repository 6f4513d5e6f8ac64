"""One long run of real processes that are killed all the time: `scripts/kills`.

`template` is where every run begins, `processes` starts and kills, `place` is a coordinator's folder and what can be seen of it
from outside, `schedule` draws who is killed when, `kills` does it, `verdict` compares with the run that nobody disturbed, and
`trainer` is what the agents train with.
"""
