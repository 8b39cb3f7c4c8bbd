package cli

// PlainConninfo is plainConninfo.
func PlainConninfo(text string) bool { return plainConninfo(text) }
