"""What a net has learned."""
