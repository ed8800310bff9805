#!/bin/bash
# A cluster of machines that are there already and that you reach over SSH; every one has Ray, torch and our dependencies.
#   infra/static.sh start HEAD [WORKER ...]      the token goes to each machine's ~/.ray/auth_token, then `ray start`
#   infra/static.sh stop HEAD [WORKER ...]
# RAYD_LABELS=ray.io/market-type=spot labels the workers, for scale.labels.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,5p "$0" >&2; exit 2; }
verb=$1 head=$2
shift 2
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
start="RAY_AUTH_MODE=token ray start --metrics-export-port=8080 --disable-usage-stats"
case $verb in
  start)
    [ -s "$token" ] || { echo "$token: no token; make one: ray get-auth-token --generate" >&2; exit 2; }
    for host in "$head" "$@"; do
      ssh "$host" 'umask 077; mkdir -p ~/.ray; cat > ~/.ray/auth_token' < "$token"
    done
    ssh "$head" "$start --head --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265" < /dev/null
    for host in "$@"; do
      ssh "$host" "$start --address=${head#*@}:6379 --labels='${RAYD_LABELS:-}'" < /dev/null
    done
    echo "ssh -N -L 8265:localhost:8265 $head &"
    echo "export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://localhost:8265" ;;
  stop)
    for host in "$@" "$head"; do
      ssh "$host" 'ray stop' < /dev/null
    done ;;
  *) echo "$verb: allowed is start or stop" >&2; exit 2 ;;
esac
