#!/bin/sh
# Faults at random moments until the time is up, an hour by default: tests/helpers/soak.sh [MINUTES] [SEED]
cd "$(dirname "$0")/../.." && exec python tests/helpers/soak.py "${1:-60}" "${2:-0}"
