"""The ablation in its parts: plan, training, measurements, records, tables, page."""
