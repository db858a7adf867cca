"""What is kept, and under which key: artifacts, the store that holds them, what an artifact depends on."""
