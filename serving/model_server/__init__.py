"""The embedded model server: speaks TensorFlow Serving's protocol where its binary can't be had."""
