"""Images per second and peak memory of a training step: forward, backward and AdamW of DeiT-tiny
distilled at 224.

Data, drop path and distillation play no part. `bfloat16` is mixed precision, weights in float32, in
TensorFlow and with torch's autocast; timm without it has its weights in bfloat16 too, which loses
small updates. Peers: see peers.py.

    python benchmarks/train_step.py --rounds 4 --json train_step.json
"""

import peers

if __name__ == "__main__":
    peers.compare("train", peers.parser(__doc__, steps=32, batches=[16, 32]).parse_args())
