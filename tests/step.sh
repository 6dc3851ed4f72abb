# Sourced by ./test and .ci/run.
#   step NAME LIMIT COMMAND…
# Prints how long the command took; one that takes longer than its limit is ended, with all it started.

# In a terminal the command stays in the foreground, so that Ctrl-C reaches it.
ctrl_c=()
[[ -t 0 ]] && ctrl_c=(--foreground)

step() {
    local name="$1" limit="$2" start=$SECONDS status=0
    shift 2
    echo "== $name: $*"
    timeout "${ctrl_c[@]}" --kill-after=10s "$limit" "$@" || status=$?
    if ((status == 124 || status == 137)); then
        echo "error: $name was not done within $limit and was ended" >&2
    fi
    echo "== $name took $((SECONDS - start)) s"
    return "$status"
}
