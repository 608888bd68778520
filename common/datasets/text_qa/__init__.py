"""Makes the benchmark of questions in words about movies: four clients' tasks, two of which are alike each."""
