package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
)

// TestRenewals: a certificate is renewed when it is due, a failure tried again
// less and less often, and what is renewed is left alone until it is due again.
func TestRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		began := time.Now()
		due := began.Add(100 * time.Hour)
		var asked []time.Duration
		refuse := true
		done := make(chan struct{})
		go func() {
			defer close(done)
			renewals(ctx, func() (time.Time, error) { return due, nil }, func() error {
				asked = append(asked, time.Since(began))
				if refuse {
					return errors.New("the server is away")
				}
				due = time.Now().Add(100 * time.Hour)
				return nil
			})
		}()
		time.Sleep(99 * time.Hour)
		synctest.Wait()
		if len(asked) > 0 {
			t.Fatalf("asked after %s", asked)
		}
		time.Sleep(time.Hour + 8*time.Minute)
		synctest.Wait()
		want := []time.Duration{100 * time.Hour, 100*time.Hour + time.Minute, 100*time.Hour + 3*time.Minute, 100*time.Hour + 7*time.Minute}
		if len(asked) != len(want) {
			t.Fatalf("asked after %s", asked)
		}
		for i := range want {
			if asked[i] != want[i] {
				t.Errorf("asked after %s, want %s", asked, want)
			}
		}
		refuse = false
		time.Sleep(99 * time.Hour)
		synctest.Wait()
		if len(asked) != len(want)+1 {
			t.Errorf("asked after %s", asked)
		}
		cancel()
		<-done
	})
}

// TestRenewalsLook: a certificate that was replaced by one that ends sooner, or
// a clock that was set, is seen within an hour.
func TestRenewalsLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		due := time.Now().Add(1000 * time.Hour)
		renewed := make(chan time.Time, 1)
		go renewals(ctx, func() (time.Time, error) { return due, nil }, func() error {
			renewed <- time.Now()
			due = time.Now().Add(1000 * time.Hour)
			return nil
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		due = time.Now()
		set := due
		if at := <-renewed; at.Sub(set) > time.Hour {
			t.Errorf("after %s", at.Sub(set))
		}
		cancel()
		synctest.Wait()
	})
}

// TestLongOffline: a node whose server is away for two months at the worst time
// has a certificate that can still be renewed; one that was away for longer says
// what is wrong and what to do.
func TestLongOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		o := Options{Node: "n1", Dir: t.TempDir()}
		authority, err := pki.OpenAuthority(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := authority.Client(o.Dir, strings.TrimSuffix(pki.CertFile, ".crt"), "system:node:n1", "system:nodes"); err != nil {
			t.Fatal(err)
		}
		if err := pki.WriteFile(filepath.Join(o.Dir, pki.CAFile), authority.PEM, 0o600); err != nil {
			t.Fatal(err)
		}
		cert, err := pki.StoredCertificate(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(pki.RenewAt(cert)) - time.Minute) // and here the server goes away
		time.Sleep(60 * day)
		if err := expired(o); err != nil {
			t.Errorf("after 60 days: %v", err)
		}
		if why, err := stored(o); err != nil || why != "" {
			t.Errorf("an agent that starts after 60 days: %q, %v", why, err)
		}
		time.Sleep(20 * day)
		err = expired(o)
		if err == nil {
			t.Fatal("after 80 days the certificate is still good")
		}
		for _, word := range []string{`"n1"`, "expired on " + cert.NotAfter.Format(time.DateOnly), "daemons run on", "legion token create"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("does not say %q: %v", word, err)
			}
		}
		if _, starts := credentials(t.Context(), o, slog.New(slog.DiscardHandler)); starts == nil || starts.Error() != err.Error() {
			t.Errorf("an agent that starts after 80 days: %v", starts)
		}
		// One that runs says it once; it has no server to ask.
		var log strings.Builder
		ctx, cancel := context.WithCancel(t.Context())
		go keepCertificate(ctx, o, &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertFile: filepath.Join(o.Dir, pki.CertFile)}}, slog.New(slog.NewTextHandler(&log, nil)))
		time.Sleep(day)
		cancel()
		synctest.Wait()
		if n := strings.Count(log.String(), "legion join LINE"); n != 1 {
			t.Errorf("an agent that runs on says %d times what to do:\n%s", n, log.String())
		}
	})
}
