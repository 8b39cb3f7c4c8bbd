package object_test

import (
	"testing"
	"time"

	"holdfast/internal/archive"
	"holdfast/internal/lease"
	"holdfast/internal/lease/leasetest"
	"holdfast/internal/lease/object"
	"holdfast/internal/store"
	"holdfast/test/places"
)

// What a listing says of objects and their times is every service's own.
func TestEveryKindOfStoreKeepsLeases(t *testing.T) {
	places.Each(t, func(t *testing.T, p places.Place) {
		t.Parallel()
		leasetest.Test(t, func(t *testing.T) leasetest.Service {
			if err := store.DeleteMany(t.Context(), p.Store, objects(t, p.Store, object.Dir)); err != nil {
				t.Fatal(err)
			}
			return leasetest.Service{TTL: 3 * time.Second, Late: 3 * time.Second, Open: func(*testing.T) lease.Keeper {
				return object.New(p.Store, archive.New(p.Store, archive.Options{}).Now, object.Options{Settle: time.Second})
			}}
		})
	})
}
