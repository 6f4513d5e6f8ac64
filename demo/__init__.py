"""The demo: a small world, a base model that has read about it, and four text tasks that ask about it.

`world` owns the people, their facts and the narrative text; `tasks` the questions that participants fine-tune on;
`make_model` trains the base model in `demo/model` on the narrative alone.
"""
