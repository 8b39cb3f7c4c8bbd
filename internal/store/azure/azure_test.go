package azure_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/store"
	"holdfast/internal/store/azure"
	"holdfast/internal/store/storetest"
	"holdfast/test/pgtest"
)

const account = "account1"

var accessKey = base64.StdEncoding.EncodeToString([]byte("the-secret-access-key"))

// open returns a store at endpoint, the blob service of the account; change, where not nil, may change its options.
func open(t *testing.T, endpoint string, change func(*azure.Options)) *azure.Store {
	t.Helper()
	o := azure.Options{Container: "archive", Prefix: "pre/fix", Endpoint: endpoint, Account: account, AccessKey: accessKey,
		BlockSize: 5 << 20, MaxRetries: 3, MaxBackoff: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := azure.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// azurite starts Azure's own stand-in for its Blob Storage, with a container for each that asks. args are further ones of its.
func azurite(t *testing.T, args ...string) (newStore func(t *testing.T, change func(*azure.Options)) *azure.Store) {
	t.Helper()
	program := pgtest.Service(t, "azurite-blob")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	cmd := exec.Command(program, append([]string{"--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"}, args...)...)
	cmd.Env = append(cmd.Environ(), "AZURITE_ACCOUNTS="+account+":"+accessKey)
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	var made atomic.Int32
	return func(t *testing.T, change func(*azure.Options)) *azure.Store {
		t.Helper()
		name := fmt.Sprintf("archive-%d", made.Add(1))
		endpoint := "http://127.0.0.1:" + port + "/" + account
		if err := open(t, endpoint, func(o *azure.Options) { o.Container = name }).CreateContainer(t.Context()); err != nil {
			t.Fatal(err)
		}
		return open(t, endpoint, func(o *azure.Options) {
			o.Container = name
			if change != nil {
				change(o)
			}
		})
	}
}

func TestAzureIsAStore(t *testing.T) {
	newStore := azurite(t)
	storetest.Test(t, func(t *testing.T) store.Store { return newStore(t, nil) })
}

func TestAzureInSmallPagesWithoutPrefixIsAStore(t *testing.T) {
	newStore := azurite(t)
	storetest.Test(t, func(t *testing.T) store.Store {
		s := newStore(t, func(o *azure.Options) { o.Prefix = "" })
		s.SmallPages(2)
		s.CopyBlocks(100_000)
		return s
	})
}
