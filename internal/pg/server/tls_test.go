package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg/server"
	"holdfast/test/pgtest"
)

// certify writes a certificate that signs itself, of the host at ip, and its key, and returns their files.
func certify(t *testing.T, ip net.IP) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{ip}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := pgtest.Dir(t)
	certificate, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for file, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, file)
	}
	return certificate, key
}

// Over TCP and TLS, by a password from a file whose line is for replication, as pg_basebackup reads it: a backup comes, one that is given up
// ends on the server, and a server that cannot prove who it is gets no password.
func TestReplicationOverTLS(t *testing.T) {
	const secret = `it's a secret`
	for _, major := range []int{13, 15, 17, 18} {
		// Any address of the host's own is free, where a port need not be.
		ip := net.IPv4(127, byte(major), byte(os.Getpid()>>8), byte(os.Getpid()))
		elsewhere := net.IPv4(127, byte(major)+100, byte(os.Getpid()>>8), byte(os.Getpid()))
		certificate, key := certify(t, ip)
		c := pgtest.New(t, pgtest.Require(t, major), pgtest.Options{Settings: map[string]string{
			"listen_addresses": ip.String() + "," + elsewhere.String(), "ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "password_encryption": "scram-sha-256",
		}})
		c.Exec(t, `create role wire login replication password '`+strings.ReplaceAll(secret, "'", "''")+`'`)
		hba := filepath.Join(c.Data, "pg_hba.conf")
		if err := os.WriteFile(hba, []byte("local all all trust\nhostssl replication wire 127.0.0.0/8 scram-sha-256\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		pgtest.Give(t, hba)
		c.Stop(t)
		c.Start(t)
		passfile := filepath.Join(pgtest.Dir(t), "pass")
		line := fmt.Sprintf("%s:%d:replication:wire:%s\n", ip, c.Server.Port(), secret)
		if err := os.WriteFile(passfile, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := func(more ...string) server.Config {
			return with(server.Config{"host": ip.String(), "port": fmt.Sprint(c.Server.Port()), "user": "wire", "dbname": "postgres", "passfile": passfile,
				"sslmode": "verify-full", "sslrootcert": certificate}, more...)
		}
		conn, err := server.ConnectReplication(t.Context(), cfg())
		if err != nil {
			t.Fatalf("%d: %v; %s", major, err, hint(err))
		}
		b, err := conn.BaseBackup(t.Context(), server.BaseBackupOptions{Label: "test", Silence: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if names, _ := receive(t, b); len(names[0]) < 100 {
			t.Errorf("%d: %d names", major, len(names[0]))
		}
		if _, _, err := b.End(); err != nil {
			t.Error(err)
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		if b, err = conn.BaseBackup(ctx, server.BaseBackupOptions{Label: "test", MaxRate: 1000}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Next(); err != nil {
			t.Fatal(err)
		}
		why := errors.New("enough of it")
		cancel(why)
		if _, err := io.Copy(io.Discard, b); !errors.Is(err, why) {
			t.Errorf("%d: given up: %v", major, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if n := c.Value(t, `select count(*) from pg_stat_activity where backend_type = 'walsender'`); n != "0" {
			t.Errorf("%d: %s sessions are left on the server", major, n)
		}

		other, _ := certify(t, ip)
		for what, test := range map[string]struct {
			cfg  server.Config
			want string
		}{
			"another authority":   {cfg("sslrootcert", other), "PGSSLROOTCERT"},
			"another host's":      {cfg("host", elsewhere.String()), elsewhere.String()},
			"without encryption":  {cfg("sslmode", "disable"), "pg_hba.conf"},
			"another password":    {cfg("password", "no "+secret), "28P01"},
			"no such mode":        {cfg("sslmode", "nope", "password", secret), "sslmode"},
			"no such certificate": {cfg("sslrootcert", "/nowhere", "password", secret), "/nowhere"},
		} {
			conn, err := server.ConnectReplication(t.Context(), test.cfg)
			if err == nil {
				t.Errorf("%d: %s: connected", major, what)
				_ = conn.Close() // of no use
				continue
			}
			if text := err.Error() + hint(err); !strings.Contains(text, test.want) || strings.Contains(text, "secret") || strings.Contains(text, "\n") {
				t.Errorf("%d: %s: %q, want %q and no password", major, what, text, test.want)
			}
		}
	}
}
