"""`make bench`: the comparison on 1.1B checkpoints in ./bench-data; PEER=path/to/mergekit-yaml adds the peer."""

from benchmarks.compare import main

main()
