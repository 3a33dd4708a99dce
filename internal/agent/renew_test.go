package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
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
