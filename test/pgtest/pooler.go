package pgtest

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/internal/pg/instance"
	"holdfast/internal/pg/server"
)

// Pooler starts what is to its clients a pooler with one session of a server, in the database postgres: each client has that session as the one before has left it, and they come one after the
// other. It ends with the test, and returns how it is reached.
func Pooler(t testing.TB, c *Cluster) server.Config {
	t.Helper()
	toServer, err := net.Dial("unix", filepath.Join(c.Server.Host(), ".s.PGSQL."+strconv.Itoa(c.Server.Port())))
	if err != nil {
		t.Fatal(err)
	}
	front := pgproto3.NewFrontend(toServer, toServer)
	front.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": instance.Superuser, "database": "postgres"}})
	if err := front.Flush(); err != nil {
		t.Fatal(err)
	}
	var greeting []byte // what each client is told as its session begins
	for ready := false; !ready; {
		m, err := front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			t.Fatal(m.Message)
		case *pgproto3.BackendKeyData:
			m.ProcessID ^= 1 << 30
		case *pgproto3.ReadyForQuery:
			ready = true
		}
		if greeting, err = m.Encode(greeting); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var turn sync.Mutex // holds client
	var client net.Conn
	var done sync.WaitGroup
	done.Go(func() {
		for {
			m, err := front.Receive()
			if err != nil {
				return
			}
			b, err := m.Encode(nil)
			turn.Lock()
			if err == nil && client != nil {
				_, _ = client.Write(b) // one who is gone needs none
			}
			turn.Unlock()
		}
	})
	done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			turn.Lock()
			client = conn
			turn.Unlock()
			_ = serve(conn, greeting, front) // its end is the client's to see
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_, _ = listener.Close(), toServer.Close()
		turn.Lock()
		if client != nil {
			_ = client.Close()
		}
		turn.Unlock()
		done.Wait()
	})
	at := listener.Addr().(*net.TCPAddr)
	return server.Config{"host": at.IP.String(), "port": strconv.Itoa(at.Port), "user": instance.Superuser, "dbname": "postgres", "sslmode": "disable"}
}

// serve passes on what a client says until it is gone.
func serve(conn net.Conn, greeting []byte, to *pgproto3.Frontend) error {
	back := pgproto3.NewBackend(conn, conn)
	first, err := back.ReceiveStartupMessage()
	if err != nil {
		return err
	}
	if _, ok := first.(*pgproto3.StartupMessage); !ok {
		return os.ErrInvalid // it asks to cancel
	}
	if _, err := conn.Write(greeting); err != nil {
		return err
	}
	for {
		m, err := back.Receive()
		if err != nil {
			return err
		}
		if _, ok := m.(*pgproto3.Terminate); ok {
			return nil
		}
		to.Send(m)
		if err := to.Flush(); err != nil {
			return err
		}
	}
}
