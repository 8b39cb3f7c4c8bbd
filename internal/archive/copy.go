package archive

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/tarpart"
)

// CopyPart makes part p of another backup the part base of d: the same bytes under another name, and the sums of its pages with them. members
// says what is in it. Where the store copies by itself no content passes through here.
func (d *Draft) CopyPart(ctx context.Context, base, from string, p Part, members []tarpart.Member) error {
	name := base + strings.TrimPrefix(p.Name, p.Base)
	if err := d.copy(ctx, from, d.archive.partsDir(from)+p.Name, d.archive.partsDir(d.name)+name); err != nil {
		return err
	}
	// A part whose sums got lost is one without, here as there.
	if err := d.copy(ctx, from, d.archive.sumsName(from, p.Base), d.archive.sumsName(d.name, base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.add(ManifestPart{Name: name, Size: p.Size, Members: members})
}

// CopyConfig gives d the configuration beside another backup, if there is any.
func (d *Draft) CopyConfig(ctx context.Context, from string) error {
	object, _, err := d.archive.findConfig(ctx, from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.copy(ctx, from, object, d.archive.folder(d.name)+strings.TrimPrefix(object, d.archive.folder(from)))
}

// copy copies an object of another backup as it is stored. As put it replaces nothing.
func (d *Draft) copy(ctx context.Context, backup, from, to string) error {
	there, err := d.archive.exists(ctx, to)
	if err == nil && there {
		err = d.taken(to)
	}
	if err != nil {
		return err
	}
	if err := store.Copy(ctx, d.archive.store, from, to); !errors.Is(err, errors.ErrUnsupported) {
		if err == nil {
			d.noteCopy(ctx, backup, from, to)
		}
		return err
	}
	body, err := d.archive.store.Open(ctx, from)
	if err != nil {
		return err
	}
	defer body.Close() // only read
	return d.put(ctx, to, body)
}

// Beating leaves signs of life, one every so often, until end is called. Where the name is lost to another push ctx ends with that as its cause.
// failed hears why others did not succeed; the next one may.
func (d *Draft) Beating(ctx context.Context, every time.Duration, failed func(error)) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := d.beatInTime(ctx)
			var inUse *InUseError
			if errors.As(err, &inUse) {
				cancel(err)
				return
			}
			if err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// beatInTime gives up before it can come so late that another push may have taken over meanwhile.
func (d *Draft) beatInTime(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not done within a minute"))
	defer cancel()
	return d.Beat(ctx)
}
