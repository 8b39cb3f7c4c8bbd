package verify_test

import (
	"testing"

	"holdfast/internal/archive"
	"holdfast/internal/store/storetest"
	"holdfast/internal/verify"
)

// verified verifies what there is.
func verified(t *testing.T, a *archive.Archive, req verify.Request, opts verify.Options) *verify.Report {
	t.Helper()
	p, err := verify.Decide(t.Context(), a, req)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Run(t.Context(), a, p, opts)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// story makes an archive with two backups, a promotion and some WAL.
func story(t *testing.T, seed uint64, o archive.Options) *maker {
	t.Helper()
	m := newMaker(t, seed, &storetest.Memory{}, o)
	m.backup()
	m.log.records(20, 1<<16) // over the end of a segment, and records that span it
	m.backup()
	m.log.records(3, 700)
	m.promote()
	m.log.records(3, 900)
	m.push()
	return m
}

func TestWhatIsWholeIsOK(t *testing.T) {
	m := story(t, 1, archive.Options{})
	rep := verified(t, m.archive(), verify.Request{All: true}, verify.Options{})
	if rep.Result != verify.OK || len(rep.Findings) != 0 {
		t.Errorf("%+v", rep)
	}
	t.Logf("%+v", rep)
}
