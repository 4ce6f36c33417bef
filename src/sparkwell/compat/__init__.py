"""Other packages' functions over Sparkwell's ops: their signatures verbatim, arguments mapped."""
