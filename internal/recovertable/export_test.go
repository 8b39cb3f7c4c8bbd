package recovertable

// Hollow returns what a selection says of files: numbers are the files of relations that are wanted, by database; nil for all of one.
func Hollow(numbers map[uint32]map[uint32]bool) func(file string) bool {
	return (&selection{numbers: numbers}).hollow
}

// Lost says whether an event is one that a search looks for.
var Lost = (*Search).lost

// Invalid returns the relation of a page that the line of a log says is not there; "" for none.
func Invalid(line string) string {
	if m := invalid.FindStringSubmatch(line); m != nil {
		return fileOf(m[1])
	}
	return ""
}
