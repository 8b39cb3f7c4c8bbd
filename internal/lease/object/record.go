package object

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/lease"
)

// Dir is where leases lie, each job's in a directory of its own.
const Dir = "holdfast/leases/"

// Bounds of what is read, in bytes: a claim, and an end, which holds the object that a job ends with.
const (
	maxClaim = 64 << 10
	maxEnd   = 96 << 20
)

// maxTTL is the longest a claim is believed to last without a sign of life.
const maxTTL = 24 * time.Hour

// claim is the content of <token>.json.
type claim struct {
	lease.Holder
	TTL   float64 `json:"ttl_seconds"` // it counts for so long after it was put, by the store's clock
	Nonce string  `json:"nonce"`       // tells claims apart
}

// ttl returns for how long the claim counts; 0 where it does not say so sensibly.
func (c *claim) ttl() time.Duration {
	if !(c.TTL > 0 && c.TTL <= maxTTL.Seconds()) {
		return 0
	}
	return time.Duration(c.TTL * float64(time.Second))
}

// How a claim ended.
const (
	released = "released" // by its holder, or by a person
	fenced   = "fenced"   // by who came next: the holder can commit nothing any more
	commits  = "commits"  // the holder puts Object, and whoever comes next does if it has not
)

// end is the content of <token>.end.json. Whoever creates it decides how the claim ended.
type end struct {
	How     string    `json:"how"`
	By      string    `json:"by"` // host
	At      time.Time `json:"at"` // by the clock of that host
	Nonce   string    `json:"nonce"`
	Closed  float64   `json:"closed_seconds,omitempty"` // for so long after this was put the job is done, for other hosts
	Object  string    `json:"object,omitempty"`
	Content []byte    `json:"content,omitempty"` // of Object, in base64
}

// finished is the content of <token>.done.json: beside an end that says "commits", that nothing is left to be done about it.
type finished struct {
	Made   bool      `json:"made"` // Object was put; false: it could not be any more, and is not to be
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Closed float64   `json:"closed_seconds,omitempty"`
}

// kind of an object in a job's directory, by its extension.
type kind string

const (
	aClaim kind = ".json"
	anEnd  kind = ".end.json"
	aDone  kind = ".done.json"
)

// name returns the object of a token.
func name(job string, token uint64, k kind) string {
	return fmt.Sprintf("%s%s/%016x%s", Dir, job, token, k)
}

// parse takes the name of an object apart; false for what is none of ours.
func parse(object string) (token uint64, k kind, ok bool) {
	base := path.Base(object)
	i := strings.IndexByte(base, '.')
	if i != 16 || strings.ToLower(base) != base {
		return 0, "", false
	}
	token, err := strconv.ParseUint(base[:i], 16, 64)
	k = kind(base[i:])
	return token, k, err == nil && token > 0 && (k == aClaim || k == anEnd || k == aDone)
}

// decodeEnd reads an end. What is in it is for who knows the object to judge; here it is only whole or not.
func decodeEnd(b []byte) (*end, error) {
	var e end
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, err
	}
	switch {
	case e.How != released && e.How != fenced && e.How != commits:
		return nil, fmt.Errorf("it says %q, which is no way to end", e.How)
	case e.How == commits && (e.Object == "" || len(e.Content) == 0):
		return nil, errors.New("it does not say what is committed")
	}
	return &e, nil
}

// closed bounds a number of seconds that was read.
func closed(seconds float64) time.Duration {
	if !(seconds > 0 && seconds <= maxTTL.Seconds()) {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}
