"""What leaves the building: SavedModels and `.tflite` files, each compared with Keras before it
gets its name.
"""
