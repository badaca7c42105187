#!/bin/sh
# Checks that every image named in the captions, labels and splits is there. Run it anywhere.
cd "$(dirname "$0")/.." || exit 1
missing=0
for image in $(cat captions/*.jsonl labels.csv splits/*.txt | grep -o 'images/[a-z]*\.[a-z]*' | sort -u); do
    if [ ! -f "$image" ]; then
        echo "missing: $image"
        missing=1
    fi
done
[ "$missing" = 0 ] && echo "every image is there"
exit "$missing"
