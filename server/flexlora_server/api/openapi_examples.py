"""The examples that OpenAPI shows."""

RUN_SPEC = {
    "name": "support-answers",
    "model": {"id": "meta-llama/Llama-3.1-8B", "task_type": "CAUSAL_LM"},
    "modules": [{"name": "model.layers.0.self_attn.q_proj", "out_features": 4096, "in_features": 4096}],
    "ranks": [4, 8, 16],
    "scaling": {"alpha_per_rank": 2.0},
    "strategy": "flexlora",
    "rounds": 10,
    "min_clients": 3,
    "min_updates": 2,
    "round_timeout": 3600.0,
    "training": {"learning_rate": 0.0002, "epochs": 1, "batch_size": 8},
}
DECLARATION = {"rank": 8, "examples": 1200, "rank_pattern": {"self_attn.q_proj": 16}}
FAILURE = {"attempt": 1, "kind": "memory", "reason": "A batch of 8 examples does not fit into 8 GB at rank 32."}
UPLOAD = {
    "rank": 8,
    "alpha": 16.0,
    "examples": 1200,
    "size": 131520,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "metrics": {"train_loss": 1.87},
}
EVALUATION = {"rank": 8, "examples": 100, "metrics": {"loss": 1.91, "exact_match": 0.42}}
RETRY = {"exclude": ["0123456789abcdef0123456789abcdef"]}
ROLLBACK = {"to": 6}
