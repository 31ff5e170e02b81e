"""Decoders of what tasks take: pictures, sound, video. Nothing here opens paths or URLs."""
