package verify_test

import (
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// Promotions where segments meet, and several within one segment, are no damage.
func TestPromotionsAnywhere(t *testing.T) {
	for what, story := range map[string]func(m *maker){
		"border":             func(m *maker) { m.log.end(); m.promote() },
		"twice":              func(m *maker) { m.log.records(3, 700); m.promote(); m.log.records(3, 700); m.promote() },
		"border twice":       func(m *maker) { m.log.end(); m.promote(); m.promote() },
		"border then within": func(m *maker) { m.log.end(); m.promote(); m.log.records(3, 900); m.promote() },
		"within backup":      func(m *maker) { m.backup(); m.promote() },
	} {
		m := newMaker(t, 1, &storetest.Memory{}, archive.Options{})
		m.backup()
		m.log.records(20, 1<<16)
		story(m)
		m.log.record(0x90, make([]byte, 24)) // end of recovery
		m.log.records(20, 1<<16)
		m.backup()
		m.push()
		for _, req := range []verify.Request{{All: true}, {}, {WAL: true}} {
			if rep := verified(t, archive.New(clone(t, m.store), archive.Options{}), req, verify.Options{}); rep.Result != verify.OK {
				t.Errorf("%s, %+v: %s", what, req, found(rep))
			}
		}
	}
}
