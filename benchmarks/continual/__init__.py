"""Tasks learnt one after the other: splitgrow's methods and those of another library."""
