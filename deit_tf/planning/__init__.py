"""What a run will take, before it begins: memory, operations, time, money."""
