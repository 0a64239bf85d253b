"""One step, and many: the trainer, its optimizer, the loop, checkpoints, replicas. Knows no
teacher.
"""
