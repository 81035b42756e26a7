"""What is played: games in lanes, and the collection of logs from them."""
