"""The bytes that tasks take and make."""
