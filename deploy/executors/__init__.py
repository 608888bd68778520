"""Three ways to run a job: in this process, on Ray, over gRPC."""
