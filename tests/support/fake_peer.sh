# Plays a peer of `tessera bench` (docs/BENCH.md): sh fake_peer.sh NAME. FAKE_PEER says how it
# fails; FAKE_PEER_LOG names a file that gets what it is asked.
case "${FAKE_PEER:-}" in
  missing) echo '{"error": "the package is missing"}'; exit 0 ;;
  silent) exit 3 ;;
  nameless) echo '{"version": "1"}' ;;
  garbled) echo 'llama_model_loader: loaded' ;;
  *) echo "{\"peer\": \"$1\", \"version\": \"1.2\"}" ;;
esac
while read -r line; do
  [ -z "${FAKE_PEER_LOG:-}" ] || echo "$line" >>"$FAKE_PEER_LOG"
  case "${FAKE_PEER:-}:$line" in
    load:*) echo '{"error": "it cannot load this"}' ;;
    *'"load"'*) echo '{"dtype": "f32, played"}' ;;
    killed:*) kill -9 $$ ;;
    mute:*) echo '{}' ;;
    *'"decode"'*) echo '{"tokens": 250, "seconds": 0.5}' ;;
    *) echo '{"tokens": 1000, "seconds": 1}' ;;
  esac
done
