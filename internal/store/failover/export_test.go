package failover

// ParseCache and FormatCache are parseCache and formatCache, by kind.
func ParseCache(b []byte) (map[string]statuses, error) { return parseCache(b) }

func FormatCache(all map[string]statuses) ([]byte, error) { return formatCache(all) }
