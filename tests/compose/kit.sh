# What scripts/test-compose and scripts/test-scale share: sourced with $bound, the seconds of each wait, set. It finds the engine,
# and sets the array `tool` to the Compose that is installed, and $work to a folder that `finish` removes.
skip() { echo "skipped: $1"; exit 0; }
command -v docker >/dev/null || skip "the program docker is not installed"
timeout 20 docker info >/dev/null 2>&1 || skip "no Docker engine answers at ${DOCKER_HOST:-the default socket}; start one, or set DOCKER_HOST"
if docker compose version >/dev/null 2>&1; then tool=(docker compose)
elif command -v docker-compose >/dev/null; then tool=(docker-compose)
else skip "neither 'docker compose' nor docker-compose is installed"; fi

work=$(mktemp -d)
export COMPOSE_PROJECT_NAME=flexlora-test-$$ FLEXLORA_SECRETS=$work/secrets FLEXLORA_BIND=127.0.0.1 FLEXLORA_PORT=0 FLEXLORA_TLS_PORT=0
compose() { timeout "$bound" "${tool[@]}" --profile "$profile" "$@"; }
step() { printf '\n== %s  (%d s)\n' "$1" "$SECONDS"; }
fail() { echo "failed: $1" >&2; exit 1; }
finish() {
  local status=$?
  trap - EXIT
  if ((status)); then compose logs --no-color --tail=40 || true; fi
  step "down --volumes: remove everything this made"
  compose down --volumes --timeout 10 || status=1
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

container() { compose ps --all --quiet "$1"; }

healthy() { # SERVICE: waits until it is
  local id state
  id=$(container "$1")
  for _ in $(seq 120); do
    state=$(docker inspect --format '{{.State.Health.Status}}' "$id")
    [[ $state == healthy ]] && return
    sleep 1
  done
  fail "$1 is $state after two minutes"
}

# The key goes through a pipe: on the command line every account of this host could read it.
get() {
  local key
  key=$(<"$FLEXLORA_SECRETS/flexlora_operator_key")
  curl --silent --show-error --fail --max-time 60 --config <(printf 'header = "Authorization: Bearer %s"\n' "$key") "$@"
}

completes() { # SERVICE: waits for its end
  local code
  code=$(timeout "$bound" docker wait "$(container "$1")") || fail "$1 has not ended after $bound s"
  [[ $code == 0 ]] || fail "$1 ended with code $code"
  echo "$1 ended with code 0"
}

field() { # FILE KEY…: a value of a JSON file
  python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]: value = value[key]
print(value)' "$@"
}
