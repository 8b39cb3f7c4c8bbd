package swift

import (
	"context"
	"net/http"

	"holdfast/internal/store/patience"
)

// do makes call until it succeeds or there is no point in going on. The error is one to return.
func (s *Store) do(ctx context.Context, op, name string, call func(ctx context.Context) error) error {
	return s.fail(op, name, s.attempt(ctx, op, name, call))
}

func (s *Store) attempt(ctx context.Context, op, name string, call func(ctx context.Context) error) error {
	renewed := false
	for t := (patience.Tries{}); ; {
		err := s.prepare(ctx, &t)
		if err == nil {
			err = call(ctx)
		}
		if err == nil {
			return nil
		}
		switch c := code(err); {
		case isLogin(err):
		case c == http.StatusUnauthorized && !renewed: // tokens end
			renewed = true
			s.conn.UnAuthenticate()
			continue
		case c == http.StatusNotFound && !s.containerSeen.Load() && s.containerMissing(ctx):
			return errNoContainer
		}
		if err := s.retry.Again(ctx, &t, op+" "+name, err); err != nil {
			return err
		}
	}
}

// containerMissing reports whether the service says that there is no such container, which it says of objects in it just as it does
// of objects that are not in it.
func (s *Store) containerMissing(ctx context.Context) bool {
	_, _, err := s.conn.Container(ctx, s.o.Container)
	if err == nil {
		s.containerSeen.Store(true)
	}
	return code(err) == http.StatusNotFound
}
