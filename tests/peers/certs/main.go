// Writes a certificate authority, a server certificate for 127.0.0.1, ::1 and localhost, and a client certificate into
// a folder, as PEM: ca.pem, server.pem, server.key, client.pem, client.key. They are good for a day; the second argument
// is the client's common name (etcd takes it for the user's name).
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "certs:", err)
		os.Exit(1)
	}
}

func write(folder, name, kind string, der []byte) {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	check(os.WriteFile(filepath.Join(folder, name), text, 0o600))
}

func key(folder, name string) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	if name != "" {
		write(folder, name, "PRIVATE KEY", der)
	}
	return key
}

func main() {
	if len(os.Args) != 3 {
		check(fmt.Errorf("usage: certs FOLDER CLIENT-NAME"))
	}
	folder := os.Args[1]
	now := time.Now()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			Subject:      pkix.Name{CommonName: name},
			NotBefore:    now.Add(-time.Hour),
			NotAfter:     now.Add(24 * time.Hour),
			KeyUsage:     x509.KeyUsageDigitalSignature,
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	authority := template(1, "test authority")
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage, authority.ExtKeyUsage = x509.KeyUsageCertSign, nil
	authorityKey := key(folder, "")
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &authorityKey.PublicKey, authorityKey)
	check(err)
	write(folder, "ca.pem", "CERTIFICATE", der)
	server := template(2, "localhost")
	server.DNSNames = []string{"localhost"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for name, leaf := range map[string]*x509.Certificate{"server": server, "client": template(3, os.Args[2])} {
		leafKey := key(folder, name+".key")
		der, err := x509.CreateCertificate(rand.Reader, leaf, authority, &leafKey.PublicKey, authorityKey)
		check(err)
		write(folder, name+".pem", "CERTIFICATE", der)
	}
}
