package cli

// ParseTable reads the name of a table as recover-table takes it.
var ParseTable = parseTable
