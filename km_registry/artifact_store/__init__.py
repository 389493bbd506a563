"""Where texts, KMs, KEs and passages are kept: in the data directory, or in a store that machines share."""
