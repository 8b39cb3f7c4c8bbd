// Package proof says which records of drills count as proof of a backup: whose they are, and who vouches for them.
//
// A drill leaves a record beside the backup (archive.ProvenDir). Who can write into the archive can write there too, and a backup can be replaced under its name. So a
// record counts only where it names the backup that it lies beside, and the SHA-256 of that one's sentinel; and where the archive has public keys (archive.Options.ProofKeys), only
// with a good signature of one of these. What does not count is neither proof nor failure, and every reader tells of it.
package proof

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/store"
)

// Proof is what the record of a drill says, as far as it decides what other commands make of it.
type Proof struct {
	archive.RecordHead
	Backup   string  `json:"backup"`
	Sentinel string  `json:"sentinel_sha256"` // of the backup that was restored: see archive.Sentinel.Sum
	OK       bool    `json:"ok"`
	RTO      float64 `json:"rto_seconds"`

	Object string          `json:"-"` // the name of the record
	When   time.Time       `json:"-"` // by the clock of who wrote it, or by the store's where that is earlier: a copy of an archive is stored later, a clock may be ahead
	Signer string          `json:"-"` // see KeyID; "" where nobody has signed it. Only where the archive has keys has that been checked
	Stored json.RawMessage `json:"-"` // all of it
}

// Took returns the RTO that was measured, 0 where it says none that makes sense.
func (p *Proof) Took() time.Duration {
	return time.Duration(min(max(p.RTO, 0), 1e9) * float64(time.Second))
}

// RefusedError says why a record does not count.
type RefusedError struct {
	Object    string
	When      time.Time // when it was stored, by its name, or by the store's clock where that is earlier
	Err       error
	Unvouched *Proof // what it says, where nothing is wrong with it but whose it is: it is not signed, or with another key. nil elsewhere
}

func (e *RefusedError) Error() string { return e.Object + " does not count as proof: " + e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Why a record does not count, beside what Verify says.
var (
	ErrOtherBackup = errors.New("it is of another backup")
	ErrReplaced    = errors.New("it is of another backup of that name, which was there before")
	ErrNameless    = errors.New("it does not say which backup of that name it is of")
	ErrMoved       = errors.New("its name says another time than it does itself")
)

// maxRecord bounds a record that is read, in bytes.
const maxRecord = 1 << 20

// maxDelay is how long it may take until a record that was signed is stored. By its name it is found: it must not be one of former times.
const maxDelay = time.Hour

// Read reads the record that a listing shows beside a backup whose sentinel has that SHA-256. One that is gone is fs.ErrNotExist, and one that does not count, or is no
// record at all, a *RefusedError. Any other error is that it could not be read.
func Read(ctx context.Context, a *archive.Archive, backup, sum string, o store.Object) (*Proof, error) {
	no := &RefusedError{Object: o.Name, When: stored(o)}
	if o.Size > maxRecord {
		no.Err = errors.New("it is larger than the record of a drill")
		return nil, no
	}
	doc, err := store.ReadFile(ctx, a.Store(), o.Name, maxRecord)
	if err != nil {
		return nil, err
	}
	p := &Proof{Object: o.Name, Stored: bytes.TrimSpace(doc)}
	if !bytes.HasPrefix(p.Stored, []byte("{")) {
		no.Err = errors.New("it is not a JSON object")
		return nil, no
	}
	if err := json.Unmarshal(p.Stored, p); err != nil {
		no.Err = fmt.Errorf("it is no record of a drill: %w", err)
		return nil, no
	}
	if _, s := split(p.Stored); s != nil {
		p.Signer = s.Key
	}
	if p.When = p.At.UTC(); p.At.Year() < 2000 || o.Modified.Before(p.At) {
		p.When = o.Modified.UTC()
	}
	about := p.isOf(backup, sum)
	if no.Err = p.vouched(a.ProofKeys()); no.Err == nil {
		no.Err = about
	}
	switch {
	case no.Err == nil:
		return p, nil
	case about == nil && (errors.Is(no.Err, ErrUnsigned) || errors.Is(no.Err, ErrOtherKey)):
		no.Unvouched = p
	}
	return nil, no
}

// stored says when a record was, by its name or by the store's clock, whichever is earlier: a copy of an archive is stored later, a writer's clock may be ahead.
func stored(o store.Object) time.Time {
	at, ok := archive.RecordTime(o.Name)
	if !ok || !o.Modified.IsZero() && o.Modified.Before(at) {
		at = o.Modified
	}
	return at.UTC()
}

// vouched says why nobody vouches for it; without keys nobody need.
func (p *Proof) vouched(keys []ed25519.PublicKey) error {
	if len(keys) == 0 {
		return nil
	}
	if err := Verify(p.Stored, keys...); err != nil {
		return err
	}
	if stored, ok := archive.RecordTime(p.Object); !ok || stored.Sub(p.At).Abs() > maxDelay {
		return fmt.Errorf("%w, %s", ErrMoved, p.At.UTC().Format(time.RFC3339))
	}
	return nil
}

// isOf says why it is of another backup.
func (p *Proof) isOf(backup, sum string) error {
	switch {
	case p.Backup != backup:
		return fmt.Errorf("%w, %.80q", ErrOtherBackup, p.Backup)
	case sum == "":
		return errors.New("which backup it is of cannot be told: the sentinel cannot be read")
	case p.Sentinel == "":
		return ErrNameless
	case p.Sentinel != sum:
		return ErrReplaced
	}
	return nil
}

// ByAge returns records in the order in which they were stored, oldest first.
func ByAge(records []store.Object) []store.Object {
	return slices.SortedStableFunc(slices.Values(records), func(x, y store.Object) int { return stored(x).Compare(stored(y)) })
}

// Newest returns the newest of the records beside a backup that counts, nil where none does. Refused are those that are newer and do not count (*RefusedError), err is
// of those that cannot be read.
func Newest(ctx context.Context, a *archive.Archive, backup, sum string, records []store.Object) (p *Proof, refused []error, err error) {
	var errs []error
	for _, o := range slices.Backward(ByAge(records)) {
		p, err := Read(ctx, a, backup, sum, o)
		var no *RefusedError
		switch {
		case err == nil:
			return p, refused, errors.Join(errs...)
		case errors.As(err, &no):
			refused = append(refused, err)
		case ctx.Err() != nil:
			return nil, refused, context.Cause(ctx)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return nil, refused, errors.Join(errs...)
}

// Tell says in a line which records do not count; "" where all do. Each of refused is a *RefusedError.
func Tell(refused []error) string {
	switch len(refused) {
	case 0:
		return ""
	case 1:
		return "the record of a drill " + refused[0].Error()
	}
	return fmt.Sprintf("%d records of drills do not count as proof, such as %s", len(refused), strings.Replace(refused[0].Error(), " does not count as proof: ", ": ", 1))
}
