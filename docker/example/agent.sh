#!/bin/sh
# One of the example's agents: enrolls at its first start, then takes part until the run completes.
# NAME, RANK and TASK say who it is; its enrollment token and its data lie where the operator's job left them.
set -eu
if [ ! -f "$FLEXLORA_HOME/credentials.json" ]; then
  FLEXLORA_TOKEN=$(cat "/example/tokens/$NAME") flexlora-client enroll "$FLEXLORA_URL" --name "$NAME"
fi
exec flexlora-client run example --rank "$RANK" --model /opt/example/demo/model --threads 1 --answers "${ANSWERS:-16}" \
  --data "/example/data/$TASK.train.jsonl" --heldout "/example/data/$TASK.heldout.jsonl"
