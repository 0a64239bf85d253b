"""Images per second of DeiT-tiny distilled at 224, inference: this project and every peer that is
installed, in turns.

Figures of two runs on a shared machine do not compare; ratios within one run do. Peers:
benchmarks/peers.py.

    python benchmarks/inference.py --rounds 5 --json inference.json
"""

import peers

if __name__ == "__main__":
    peers.compare("inference", peers.parser(__doc__, steps=32, batches=[1, 32]).parse_args())
