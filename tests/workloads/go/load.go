package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// A connection for each client, also where one could carry the requests of all.
func loadAll() {
	var number atomic.Int64
	var lock sync.Mutex
	var group sync.WaitGroup
	statuses := map[int]int{}
	for i := 0; i < *clients; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			client := http.Client{Transport: transport.Clone()}
			for n := number.Add(1); n <= int64(*requests); n = number.Add(1) {
				url := strings.ReplaceAll(*load, "{}", strconv.FormatInt(n-1, 10))
				status := loadOne(&client, url)
				lock.Lock()
				statuses[status]++
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	json.NewEncoder(os.Stdout).Encode(statuses)
}

// The status of an answer that was read whole; 0 for any other.
func loadOne(client *http.Client, url string) int {
	response, err := client.Get(url)
	if err == nil {
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", url, err)
		return 0
	}
	return response.StatusCode
}
