package object_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/lease"
	"holdfast/internal/lease/object"
	"holdfast/internal/pg/wal"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/tarpart"
)

// push makes a backup of one file as backup-push does, holding the lease.
func push(ctx context.Context, s store.Store, host, name string) error {
	a := archive.New(s, archive.Options{})
	k := object.New(s, a.Now, object.Options{Finish: func(ctx context.Context, id, object string, content []byte) (bool, error) {
		why, err := a.Finish(ctx, id, object, content, host)
		return why == "", err
	}})
	return lease.Hold(ctx, k, "backup-push", lease.Holder{Host: host}, ttl, func(ctx context.Context, g lease.Grant) (err error) {
		d, err := a.Fenced(g.(*object.Grant)).Begin(ctx, name, host)
		if err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, d.Abort(context.WithoutCancel(ctx)))
			}
		}()
		given := false
		p := tarpart.NewPacker(func() (tarpart.Entry, error) {
			if given {
				return tarpart.Entry{}, io.EOF
			}
			given = true
			return tarpart.Entry{Path: "base/5/1", Content: []byte("one"), Mode: 0o600}, nil
		}, tarpart.Options{})
		if err := d.PutPart(ctx, d.NextPart(), p, p.Members); err != nil {
			return err
		}
		lsn, id := wal.LSN(0x3000028), uint64(7359000000000000001)
		return d.Commit(ctx, &archive.Sentinel{LSN: &lsn, FinishLSN: &lsn, SystemIdentifier: &id, PgVersion: 150018, StartTime: time.Unix(9, 0).UTC()})
	})
}

// Whichever call of a push fails, before it was done, halfway or after it: what it said is so, and once the next one has been there the first has left a whole
// backup or nothing.
func TestWhicheverCallFailsABackupIsWholeOrNone(t *testing.T) {
	const first, second = "base_000000010000000000000003", "base_000000010000000000000005"
	for how, fail := range map[string]func(store.Store, int) *storetest.Flaky{"before": storetest.FailAt, "midway": storetest.FailMidway, "after": storetest.FailAfter} {
		for n, done := 0, false; !done; n++ {
			synctest.Test(t, func(t *testing.T) {
				m := &storetest.Memory{}
				flaky := fail(m, n)
				err := push(t.Context(), flaky, "db1", first)
				done = !flaky.Reached()
				there := func(name string) bool {
					_, err := m.Stat(t.Context(), archive.BackupDir+name+"_backup_stop_sentinel.json")
					return err == nil
				}
				var kept *lease.ReleaseError
				if made := err == nil || errors.As(err, &kept); made && !there(first) || done && err != nil {
					t.Errorf("%s call %d: %v, and the sentinel is there: %v", how, n, err, there(first))
				}
				time.Sleep(3 * ttl)
				if err := push(t.Context(), m, "db2", second); err != nil || !there(second) {
					t.Errorf("%s call %d: the next one: %v", how, n, err)
				}
				if parts, err := archive.New(m, archive.Options{}).Parts(t.Context(), first); err != nil || there(first) && len(parts) != 1 {
					t.Errorf("%s call %d: the first has %d parts, %v", how, n, len(parts), err)
				}
				if there(first) {
					return
				}
				// What may be left has a marker of a turn that has ended, so that who wants the name does not have to wait.
				time.Sleep(3 * ttl)
				if err := push(t.Context(), m, "db3", first); err != nil {
					t.Errorf("%s call %d: under the same name: %v", how, n, err)
				}
			})
		}
	}
}
