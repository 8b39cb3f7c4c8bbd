package mirror

// ParseDebt is parseDebt.
func ParseDebt(b []byte) (Debt, error) { return parseDebt(b) }
