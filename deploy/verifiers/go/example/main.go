// Command example answers for every token on standard input: accept, or why not.
//
//	go run ./example ISSUER AUDIENCE       REMIT_BEARER: how the service authenticates, if it does
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"

	"remitverifier"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("example ISSUER AUDIENCE")
	}
	options := remitverifier.Options{Bearer: os.Getenv("REMIT_BEARER")}
	verifier, err := remitverifier.Follow(context.Background(), os.Args[1], os.Args[2], options)
	if err != nil {
		log.Fatal(err)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verified, err := verifier.Check(lines.Text(), "")
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("accept", verified.Claims()["sub"])
	}
}
